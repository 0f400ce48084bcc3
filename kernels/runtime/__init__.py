"""Host machinery that makes calls fast: launches, recordings, capacities."""
