"""`python -m conversion.faserdl CKPT OUT`, the same as `nufm convert`; the code is part of the package, so that a wheel has it too."""

import typer

from nufm_hub.conversion.command import convert

if __name__ == "__main__":
    typer.run(convert)
