"""A dashboard: panels under the same variables and the same banner."""

import json
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from etameter.dashboards.panels import DATASOURCE, Panel, banner

TAG = "etameter"
ALL = models.VariableOption(selected=True, text="All", value="$__all")
Variables = Sequence[tuple[str, str, str]]
"""Names, labels, and the queries that tell their values."""
VARIABLES: Variables = (
    ("model", "Model", "label_values(etameter_energy_joules_total, model_name)"),
    ("arm", "Arm", "label_values(etameter_energy_joules_total, arm)"),
    ("gpu", "GPU", "label_values(etameter_gpu_energy_joules_total, gpu_uuid)"),
    ("source", "Source", "label_values(etameter_gpu_energy_joules_total, source)"),
)

OF = 'model_name=~"$model", arm=~"$arm"'
"""What selects the figures of an arm that have no source."""
ARM = f'{OF}, source=~"$source"'
"""What selects the figures of an arm."""
MODEL = 'model_name=~"$model", source=~"$source"'
"""What selects those of all arms."""
GPU = 'gpu_uuid=~"$gpu"'
"""What selects the figures of a device that have no source."""
DEVICE = f'{GPU}, source=~"$source"'
"""What selects the figures of a device."""


def board(
    uid: str,
    title: str,
    description: str,
    panels: Sequence[Panel],
    *,
    since: str = "now-30m",
    refresh: str = "10s",
    variables: Variables = VARIABLES,
    devices: str = "etameter_gpu_energy_joules_total",
) -> dict[str, Any]:
    """What Grafana imports. The banner names the sources of `devices`, a metric."""
    made = dashboard.Dashboard(title).uid(uid).description(description).tags([TAG]).time(since, "now").refresh(refresh)
    made = made.tooltip(models.DashboardCursorSync.CROSSHAIR).timezone("browser").editable()
    made = made.link(
        dashboard.DashboardLink("etameter")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .keep_time(True)
        .include_vars(True)
    )
    made = made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, label, asked in variables:
        variable = dashboard.QueryVariable(name).label(label).query(asked).datasource(DATASOURCE)
        variable = variable.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(
            models.VariableSort.ALPHABETICAL_ASC
        )
        made = made.with_variable(variable.multi(True).include_all(True).all_value(".*").current(ALL))
    for panel in (banner(devices), *panels):
        made = made.with_panel(panel)
    tree: dict[str, Any] = _without_nulls(json.loads(json.dumps(made.build(), cls=JSONEncoder)))
    for number, drawn in enumerate(tree["panels"], start=1):
        drawn["id"] = number
    return tree


def _without_nulls(tree: Any) -> Any:
    """Grafana takes null for a value where it means none, but for the lowest threshold, which has no value."""
    if isinstance(tree, dict):
        return {name: _without_nulls(value) for name, value in tree.items() if value is not None}
    return [_without_nulls(each) for each in tree] if isinstance(tree, list) else tree
