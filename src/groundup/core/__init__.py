"""What every other folder may use: files, hashing, text, statistics, progress, processes and Ray. It knows no chapter."""
