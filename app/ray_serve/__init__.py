"""Run the application in each replica of a Ray Serve deployment. Needs the extra `ray`.

Ray places, routes to, scales and replaces the replicas; nothing here schedules, queues or caches.
"""
