"""`longrec replay`: a data set's events in time order against a server, each of them predicted before it is sent."""
