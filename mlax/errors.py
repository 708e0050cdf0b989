"""The wording of errors: what was expected, what came, and the way out."""


def expected(owner: str, what: str, got: object, way_out: str = "") -> str:
    """Return "OWNER: expected WHAT, got VALUE; WAY OUT"."""
    text = f"{owner}: expected {what}, got {got}"
    return f"{text}; {way_out}" if way_out else text


def message(owner: str, argument: str, wanted: str, got: object, way_out: str = "") -> str:
    """Return "OWNER: expected ARGUMENT to be WANTED, got VALUE; WAY OUT"."""
    return expected(owner, f"{argument} to be {wanted}", got, way_out)
