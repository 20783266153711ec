"""What several modules ask of what they are given, in words for people."""


def differences(there: dict, now: dict) -> list[str]:
    """In words, where the settings of something saved, `there`, differ from those of `now`."""
    return [
        f"{name} is {there.get(name)!r} there, {now.get(name)!r} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
