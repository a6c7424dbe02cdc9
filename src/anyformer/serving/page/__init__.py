"""The page of a server: one file that talks to the server it came from, and to nothing else."""
