"""Panels of Grafana 11.6, as all dashboards here draw them: a description on each, colours that colour-blind people tell apart."""

import math
from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import bargauge, common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = Builder[models.Panel]

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")

# Okabe and Ito, "Color Universal Design" (2008).
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#7F7F7F",  # black would not show on a dark page
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
RED = "#C4162A"
BROWN, WINE = "#8C510A", "#882255"
GOOD, DOUBTFUL, BAD = BLUE, ORANGE, VERMILION

Colours = Mapping[str, str]
"""Of series whose names begin so: what always means the same looks the same everywhere."""
ARMS: Colours = {
    "unconstrained": BLACK,
    "entrace": BLUE,
    "entrace-stack": SKY,
    "entrace-task": GREEN,
    "seed": PURPLE,
    "deterministic": YELLOW,
    "concise": ORANGE,
    "placebo": VERMILION,
}
QUANTILES: Colours = {"median": BLUE, "95 %": ORANGE, "99 %": VERMILION}
ENDS: Colours = {"stop": BLUE, "length": ORANGE, "abort": VERMILION, "error": PURPLE, "repetition": YELLOW}
USES: Colours = {
    "output": BLUE,
    "prompt": SKY,
    "cached": GREEN,
    "idle": BLACK,
    "engine_overhead": YELLOW,
    "model_residual": VERMILION,
    "steps_missing": ORANGE,
    "readings_missing": PURPLE,
    "stale": RED,
    "reset": BROWN,
    "implausible": WINE,
}
CATEGORIES: Colours = {
    "preamble": BLUE,
    "restatement": SKY,
    "hedge": GREEN,
    "meta": YELLOW,
    "repetition": ORANGE,
    "closing": PURPLE,
    "junk": VERMILION,
    "unspecified": BLACK,
}

WASTES: Colours = {"truncated": VERMILION, "abandoned": ORANGE, "retry": PURPLE, "draft": SKY}
NEEDS: Colours = {"required": BLUE, "optional": SKY, "slack": ORANGE, "unclassified": BLACK}
OUTCOMES: Colours = {
    "task: correct": BLUE,
    "task: wrong": VERMILION,
    "task: failed": PURPLE,
    "deep: agreed": GREEN,
    "deep: judged": ORANGE,
    "deep: failed": BLACK,
}

NOTHING = "Nothing yet: no meter is scraped, or there is none of what is chosen above."

LEAST_TOPS: Mapping[str, float] = {"percentunit": 0.01, "none": 1.0}
"""Of axes, by unit: where all is nought, Grafana would go to 100 of it."""

Thresholds = Sequence[tuple[float, str]]
"""From each value on a colour; the first has no lower end."""


def query(expression: str, legend: str = "", *, exemplar: bool = False) -> prometheus.Dataquery:
    """Over the time that is shown."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range().exemplar(exemplar)


def now(expression: str, legend: str = "") -> prometheus.Dataquery:
    """At the end of the time that is shown."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).instant()


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus.Dataquery,
    span: int = 12,
    height: int = 8,
    colours: Colours | None = None,
    dashed: str | None = None,
    stacked: bool = False,
    least: float | None = 0.0,
    most: float | None = None,
    logarithmic: bool = False,
    empty: str = NOTHING,
) -> Panel:
    """Figures over time. Names that end in `dashed` are; `empty` says why there may be none."""
    panel = timeseries.Panel().legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.TABLE if span >= 12 else common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "mean"] if span >= 12 else [])
    )
    panel = panel.tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    panel = panel.line_width(2).fill_opacity(40 if stacked else 0).show_points(common_models.VisibilityMode.AUTO)
    panel = panel.span_nulls(60_000.0)  # ms: more than a scrape that was missed is a gap
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")).line_width(1)
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    elif least is not None:
        panel = panel.min(least)
        panel = panel.axis_soft_max(LEAST_TOPS[unit]) if unit in LEAST_TOPS else panel
    if most is not None:
        panel = panel.max(most)
    panel = panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    for name, colour in (colours or {}).items():
        value = {"mode": "fixed", "fixedColor": colour}
        panel = panel.override_by_regexp(f"^{name}([ ,].*)?$", [models.DynamicConfigValue(id_val="color", value=value)])
    if dashed:
        style = models.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]})
        panel = panel.override_by_regexp(f".* {dashed}$", [style])
    return _told(panel.unit(unit).span(span).height(height), title, description, queries, empty)


def figure(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus.Dataquery,
    span: int = 4,
    height: int = 5,
    thresholds: Thresholds = ((-math.inf, GOOD),),
    decimals: int | None = None,
    words: Mapping[int, str] | None = None,
    empty: str = NOTHING,
) -> Panel:
    """The latest figures, large, one for each source; `words` stand for values."""
    panel = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(common_models.BigValueGraphMode.AREA).color_mode(common_models.BigValueColorMode.VALUE)
    panel = panel.text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
    panel = panel.thresholds(_steps(thresholds)).unit(unit)
    panel = panel if decimals is None else panel.decimals(decimals)
    if words:
        told = {str(value): models.ValueMappingResult(text=word) for value, word in words.items()}
        panel = panel.mappings([models.ValueMap(options=told)])
    return _told(panel.span(span).height(height), title, description, queries, empty)


def bars(
    title: str,
    description: str,
    unit: str,
    *queries: prometheus.Dataquery,
    span: int = 8,
    height: int = 8,
    thresholds: Thresholds = ((-math.inf, GOOD),),
    empty: str = NOTHING,
) -> Panel:
    """The latest figures side by side."""
    panel = bargauge.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.orientation(common_models.VizOrientation.HORIZONTAL)
    panel = panel.display_mode(common_models.BarGaugeDisplayMode.BASIC).show_unfilled(True)
    panel = panel.name_placement(common_models.BarGaugeNamePlacement.TOP)
    panel = panel.thresholds(_steps(thresholds)).unit(unit).min(0.0)
    return _told(panel.span(span).height(height), title, description, queries, empty)


def heat(
    title: str,
    description: str,
    unit: str,
    bucket: prometheus.Dataquery,
    *,
    span: int = 12,
    height: int = 9,
    empty: str = NOTHING,
) -> Panel:
    """A histogram over time: how many requests fell into each bucket."""
    panel = heatmap.Panel().calculate(False).unit(unit)
    panel = panel.color(
        heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Viridis").steps(64)
    )
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(common_models.AxisPlacement.LEFT))
    panel = (
        panel.exemplars_color("rgba(255,255,255,0.9)")
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .show_legend()
    )
    return _told(
        panel.span(span).height(height),
        title,
        description,
        (bucket.format(PromQueryFormat.HEATMAP).legend_format("{{le}}"),),
        empty,
    )


def rows(
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, prometheus.Dataquery]],
    *,
    by: Sequence[str],
    span: int = 24,
    height: int = 9,
    sorted_by: str | None = None,
    empty: str = NOTHING,
) -> Panel:
    """A table of the latest figures with a line for each combination of the labels `by`; `columns` are names, units and queries.

    Where a column is named in `sorted_by`, its largest figures come first.
    """
    panel = table.Panel().show_header(True).min_width(70.0)  # of a column: figures are short
    if sorted_by is not None:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sorted_by).desc(True)])
    if "model_name" in by:
        panel = panel.override_by_name("model_name", [models.DynamicConfigValue(id_val="custom.width", value=240)])
    letters = [chr(ord("A") + place) for place in range(len(columns))]
    queries = [asked.format(PromQueryFormat.TABLE) for _, _, asked in columns]
    for name, unit, _ in columns:
        panel = panel.override_by_name(
            name,
            [
                models.DynamicConfigValue(id_val="unit", value=unit),
                models.DynamicConfigValue(id_val="decimals", value=0 if unit == "none" else 2),
                models.DynamicConfigValue(id_val="noValue", value="–"),  # of a cell; the panel's own is of the whole
            ],
        )
    renamed = {f"Value #{letter}": name for letter, (name, _, _) in zip(letters, columns, strict=True)}
    renamed |= {"Value": columns[0][0]} if len(columns) == 1 else {}
    hidden = dict.fromkeys(sorted({"Time", "__name__", "job", "instance", "environment"} - set(by)), True)
    order = {name: place for place, name in enumerate([*by, *renamed])}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={"excludeByName": hidden, "renameByName": renamed, "indexByName": order},
        )
    )
    return _told(panel.span(span).height(height), title, description, queries, empty)


def banner(devices: str) -> Panel:
    """Which sources a metric of devices has; a simulated one is red, and says so in words."""
    panel = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE).color_mode(
        common_models.BigValueColorMode.BACKGROUND_SOLID
    )
    panel = panel.text_mode(common_models.BigValueTextMode.NAME).thresholds(_steps(((-math.inf, GOOD),)))
    said = {
        "simulated": ("SIMULATED: no counter stands behind these joules", RED),
        "measured": ("measured", GOOD),
        "estimated": ("estimated from power readings, not counted", DOUBTFUL),
        "shared": ("shared with neighbours on the board", DOUBTFUL),
    }
    for source, (words, colour) in said.items():
        panel = panel.override_by_name(
            source,
            [
                models.DynamicConfigValue(id_val="displayName", value=words),
                models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour}),
            ],
        )
    panel = panel.span(24).height(3)
    asked = now(f'count by (source) ({devices}{{source=~"$source"}})', "{{source}}")
    return _told(panel, "", "Where the figures of this page come from.", (asked,), "No meter is scraped yet.")


def _steps(thresholds: Thresholds) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None if math.isinf(value) else value, color=colour) for value, colour in thresholds]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


_Kinds = timeseries.Panel | stat.Panel | bargauge.Panel | heatmap.Panel | table.Panel


def _told(panel: _Kinds, title: str, description: str, queries: Sequence[prometheus.Dataquery], empty: str) -> Panel:
    """Every query has a letter, every panel a title, a description, and words for when there is nothing to show."""
    for place, asked in enumerate(queries):
        panel = panel.with_target(asked.ref_id(chr(ord("A") + place)).datasource(DATASOURCE))
    return panel.title(title).description(description).no_value(empty).datasource(DATASOURCE)
