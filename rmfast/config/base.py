"""What every section of a config is made of: types of values, and the one way to refuse keys that do not fit."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from rmfast.data.columns import read_columns
from rmfast.errors import KeyClash
from rmfast.trainer.schedule import Schedule

Paths = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(lambda v: (v,) if isinstance(v, int | float | str) else v)]
Columns = Annotated[tuple[str, ...], BeforeValidator(lambda value: read_columns(value).words)]
Beta = Annotated[float, Field(ge=0, lt=1)]


def _suites(value: Any) -> Any:
    """[LABEL:]SUITE=PATH, one or several."""
    values = (value,) if isinstance(value, str) else value
    for one in values if isinstance(values, list | tuple) else ():
        if not all(str(one).partition("=")):
            raise ValueError(f"is SUITE=PATH, as in rmb=RMB_dataset, got {one!r}")
    return values


def _slice(value: Any) -> Any:
    """Quantiles or the name of some edges."""
    if value not in ("negative", "all", None) and not (isinstance(value, list | tuple) and len(value) == 2):
        raise ValueError(f"is negative, all or two quantiles, got {value!r}")
    return value


def _spelling(value: Any) -> Any:
    """Other spellings of a choice."""
    return {"bf16": "bfloat16", "fp32": "float32", "inverse-sqrt": "inverse_sqrt"}.get(str(value), value)


Suites = Annotated[tuple[str, ...], BeforeValidator(_suites)]
EdgeSlice = Annotated[Literal["negative", "all"] | tuple[float, float] | None, BeforeValidator(_slice)]
Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_spelling)]
ScheduleName = Annotated[Schedule, BeforeValidator(_spelling)]
Preset = Annotated[
    Literal["baseline", "margin", "flip", "flip_margin", "soft_margin"],
    BeforeValidator(lambda v: "baseline" if v == "none" else v),
]


class Section(BaseModel):
    """A frozen group of keys; unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1; YAML takes a bare yes or on for true.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"is not true or false, got {value}")
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
