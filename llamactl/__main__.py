"""``python -m llamactl`` is ``llamactl``."""

from llamactl.cli import main

if __name__ == "__main__":
    main()
