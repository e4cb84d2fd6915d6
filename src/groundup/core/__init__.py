"""What every other folder may use: no chapter, no stage, no torch."""
