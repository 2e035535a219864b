"""Recording: from a training thread to the log in the background, and to local disk while the log is away."""
