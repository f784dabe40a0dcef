"""Pages that hold everything they need: text, data, charts, and the library that draws them."""

from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from slimrank.report.charts import Spec, altair
from slimrank.report.data import Columns
from slimrank.runtime.versions import versions


def render(template: str, charts: dict[str, Spec], data: dict[str, Columns], **values: Any) -> str:
    """The HTML of a page: `charts` by the id of their element, `data` by the name that the charts give it."""
    loader = jinja2.FileSystemLoader(str(files("slimrank") / "report" / "templates"))
    pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    pages.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    made = pages.get_template(f"{template}.html.j2")
    return made.render(
        charts=charts, data=data, bundle=Markup(bundle()), version=versions()["slimrank"], **values
    )  # fmt: skip


@lru_cache(maxsize=1)
def bundle() -> str:
    """vega, vega-lite and vega-embed as one script of about 0.9 MB, of the version that altair writes for."""
    import vl_convert

    release = ".".join(altair().SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=release)
    return script.replace("</script", "<\\/script")
