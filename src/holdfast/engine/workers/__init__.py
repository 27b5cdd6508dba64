"""Several processes on one machine that run attack jobs for one run.

Only the run's own process writes the journal and decides what comes next; workers hold the model,
get jobs, and send back how they ended. A worker that dies loses nothing but time.
"""
