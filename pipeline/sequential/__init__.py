"""Sequential fits of runs: the source's units go through the model in lockstep, over the workers, from site to site."""
