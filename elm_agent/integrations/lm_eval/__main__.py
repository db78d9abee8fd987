"""The harness's own command, with the model ``elm_agent`` registered: versions up to 0.4.13 look for no plugins."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from elm_agent.integrations.lm_eval import MISSING


def main() -> None:
    """Run the command line of the harness."""
    if find_spec("lm_eval") is None:
        sys.exit(MISSING)
    from lm_eval.__main__ import cli_evaluate

    import elm_agent.integrations.lm_eval.harness  # noqa: F401 - registers the model

    cli_evaluate()


if __name__ == "__main__":
    main()
