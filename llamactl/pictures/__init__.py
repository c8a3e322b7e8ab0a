"""The paper's figures, of what the stages have written."""
