"""`serve run app.ray_serve.serve:deployment replicas=2`: gradless as an application of Ray Serve.

GRADLESS_* variables configure the replicas. They are read where `deployment` runs and travel to the replicas with the
application. For a config file Ray calls `deployment` in a task on the cluster, which sees the variables of the file's
`runtime_env`.
"""
# Without `from __future__ import annotations`: Ray reads the class of `arguments` from the annotation.

from pathlib import Path

from ray import serve

from app.ray_serve.options import Replicas, deployment_options
from app.ray_serve.replica import Replica
from app.ray_serve.settings_paths import with_absolute_paths
from app.settings import load_settings


def deployment(arguments: Replicas) -> serve.Application:
    """Return the application, for `serve run` and config files. Raises SettingsError."""
    settings = with_absolute_paths(load_settings(), Path.cwd())
    replica = serve.deployment(serve.ingress()(Replica), name="gradless", **deployment_options(arguments, settings))
    return replica.bind(settings, arguments.cores)
