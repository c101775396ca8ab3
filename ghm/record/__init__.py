"""What a run was: what it depended on, described for others, and whether another run is the same."""
