"""From user states to ranks, from ranks to metrics, from metrics to a page that a person can judge."""
