"""Write the dashboards to docker/grafana/dashboards."""

from __future__ import annotations

from observe.dashboards import FILES
from observe.places import DASHBOARDS

for name, content in FILES.items():
    (DASHBOARDS / name).write_text(content)
