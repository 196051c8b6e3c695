"""What curves over N say, in words."""

from rmfast.evaluation.best_of_n.curves import BestOfN, Curve


def best_rule(found: BestOfN) -> Curve:
    """The rule with the greatest gold at the last N; of one model that alone."""
    return max(found.rules or found.members, key=lambda curve: curve.gold[-1].value)


def falls(curve: Curve) -> bool:
    """Whether gold at the last N is below its peak by more than chance."""
    return curve.fall.high < 0


def verdict(curve: Curve, last: int) -> str:
    """What a curve says of choosing by it, for people."""
    gain = curve.gold[-1]
    if gain.side < 0:
        return f"gold of the pick of {last} is below a random response's: do not choose by this model"
    if falls(curve):
        return f"gold is highest at N = {curve.peak} and falls after it: the proxy is over-optimised; stop there"
    if gain.side == 0:
        return f"the pick of {last} may be no better than a random response: more prompts would tell"
    if curve.peak < last:
        return f"gold rises until N = {curve.peak} and then stays level, as far as these prompts tell"
    return f"gold rises with the proxy up to N = {last}"
