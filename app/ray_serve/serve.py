"""`serve run app.ray_serve.serve:deployment replicas=2`: the service as an application of Ray Serve's.

How each replica serves is said by the GRADLESS_ variables, as ever. They are read where this is called, and travel to
the replicas with the application: on no other machine anything need be set. Of a config file Ray calls it in a task of
the cluster's, which has the variables that the file's runtime_env names.
"""
# No annotations from the future here: Ray looks at `deployment` for the class to check its arguments by.

from pathlib import Path

from ray import serve

from app.ray_serve.anywhere import anywhere
from app.ray_serve.options import Replicas, deployment_options
from app.ray_serve.replica import Replica
from app.settings import load_settings


def deployment(arguments: Replicas) -> serve.Application:
    """For `serve run` and config files, which call it with what they are given. Raises SettingsError."""
    settings = anywhere(load_settings(), Path.cwd())
    served = serve.deployment(serve.ingress()(Replica), name="gradless", **deployment_options(arguments, settings))
    return served.bind(settings, arguments.cores)
