"""Other people's files as they are, and our records made of them: ``llamactl convert``."""
