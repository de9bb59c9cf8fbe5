"""Write the dashboards to docker/grafana/dashboards, and the routes that accept images to rules and page."""

from __future__ import annotations

from observe import DASHBOARDS, image_routes
from observe.dashboards import FILES

for name, content in FILES.items():
    (DASHBOARDS / name).write_text(content)
for path, text in image_routes.files():
    path.write_text(text)
