"""The service on more than one machine: the same application in each replica of Ray Serve. Needs the extra `ray`.
What Ray does is Ray's: placing, routing, scaling, replacing. There is no scheduler, queue or cache of ours."""
