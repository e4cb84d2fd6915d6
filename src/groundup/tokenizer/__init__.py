"""Documents -> tokens: byte-pair encoding trained from counts, the folder, the conversations, token files."""
