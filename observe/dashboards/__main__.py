"""Write the dashboards to docker/grafana/dashboards."""

from __future__ import annotations

from observe import DASHBOARDS
from observe.dashboards import FILES

for name, content in FILES.items():
    (DASHBOARDS / name).write_text(content)
