"""Text from HTML: character sets, main content, formulas."""
