"""What every section of a config is made of: types of values, and the one way to refuse keys that do not fit."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from rmfast.data.columns import read_columns
from rmfast.errors import KeyClash, shown
from rmfast.paths import usable_path
from rmfast.trainer.schedule import Schedule

PathText = Annotated[str, AfterValidator(usable_path)]
Paths = Annotated[tuple[PathText, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
TemplateText = Annotated[str, AfterValidator(lambda value: value if "{" in value else usable_path(value))]
"""A chat template's file, or its text."""
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(lambda v: (v,) if isinstance(v, int | str) else v)
]
Numbers = Annotated[tuple[float, ...], BeforeValidator(lambda v: (v,) if isinstance(v, int | float | str) else v)]
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: read_columns(value).words)]
LoraTargets = Annotated[
    tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], ...],
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _suites(value: Any) -> Any:
    """[LABEL:]SUITE=PATH, one or several."""
    values = (value,) if isinstance(value, str) else value
    for one in values if isinstance(values, list | tuple) else ():
        if not all(str(one).partition("=")):
            raise ValueError(f"is SUITE=PATH, as in rmb=RMB_dataset, got {shown(one)}")
    return values


def _slice(value: Any) -> Any:
    """Quantiles or the name of some edges."""
    if value not in ("negative", "all", None) and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError(f"is negative, all or two quantiles, got {shown(value)}")
    return value


def _spelling(value: Any) -> Any:
    """Other spellings of a choice."""
    return {"bf16": "bfloat16", "fp32": "float32", "inverse-sqrt": "inverse_sqrt"}.get(str(value), value)


Suites = Annotated[tuple[PathText, ...], BeforeValidator(_suites)]
EdgeSlice = Annotated[Literal["negative", "all"] | tuple[float, float] | None, BeforeValidator(_slice)]
Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_spelling)]
ScheduleName = Annotated[Schedule, BeforeValidator(_spelling)]
Preset = Annotated[
    Literal["baseline", "margin", "flip", "flip_margin", "soft_margin"],
    BeforeValidator(lambda v: "baseline" if v == "none" else v),
]


LARGEST, SMALLEST = 2.0**31, 1e-30
"""Of every number of a config, beside 0: others are slips, and overflow where they are computed with."""


class Section(BaseModel):
    """A frozen group of keys; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1; YAML takes a bare yes or on for true.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"is not true or false, got {value}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _within_reason(cls, value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int | float) and one and not SMALLEST <= abs(one) <= LARGEST:
                raise ValueError(f"is beyond {SMALLEST:g} to {LARGEST:,.0f}, got {shown(one)}")
        return value

    def check(self, config: Any) -> None:
        """Refuse values that do not fit those of the whole config.

        Raises:
            KeyClash: two keys clash, or one would do nothing.
        """


def refuse(clash: object, key: str, text: str, *others: str) -> None:
    """Raise a `KeyClash` that begins with `key` where there is a clash; `others` are the other keys of the clash."""
    if clash:
        raise KeyClash(f"{key} {text}", key, *others)
