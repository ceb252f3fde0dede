"""Reads the Grafana dashboard: its queries as Prometheus wants them."""

import json
import pathlib
import re
import typing

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "moe-serve.json"

# What Grafana fills in; the variables stand for "All" where they may.
_VARIABLES = {"__rate_interval": "1m", "__interval": "1m", "__range": "1m", "job": "moe", "rank": ".*", "layer": ".*"}
_VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")


class Query(typing.NamedTuple):
    where: str       # 'panel "Title" A' or 'variable "name"'
    expression: str  # PromQL without Grafana's variables


def filled(expression: str) -> str:
    """`expression` with a value for each of Grafana's variables; KeyError for an unknown one."""
    return _VARIABLE.sub(lambda match: _VARIABLES[match[1] or match[2]], expression)


def panels(dashboard: dict) -> list[dict]:
    """All panels, those inside collapsed rows too, without the rows."""
    nested = [inner for panel in dashboard["panels"] for inner in panel.get("panels", [])]
    return [panel for panel in dashboard["panels"] + nested if panel["type"] != "row"]


def queries(dashboard: dict) -> list[Query]:
    """Every panel's targets and every variable that asks Prometheus."""
    found = [Query(f'panel "{panel["title"]}" {target["refId"]}', filled(target["expr"]))
             for panel in panels(dashboard) for target in panel["targets"]]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
            found.append(Query(f'variable "{variable["name"]}"', f'count by ({label}) ({filled(selector)})'))
    return found


def load(path: pathlib.Path = DASHBOARD) -> dict:
    return json.loads(path.read_text())
