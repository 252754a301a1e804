"""How the site is built: ``sphinx-build -W docs build/site``."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
from docutils import nodes
from latex2mathml.converter import convert
from sphinx_gallery.sorting import FileNameSortKey

import fairsteer

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "fairsteer"
author = "fairsteer developers"
version = release = fairsteer.__version__
project_copyright = "fairsteer developers"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["gallery"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]

html_theme = "pydata_sphinx_theme"
html_title = "fairsteer"
html_theme_options = {
    "logo": {"text": "fairsteer"},
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 9,
    "navbar_persistent": ["search-button"],
    "collapse_navigation": True,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_show_sourcelink = False
html_sidebars = {
    page: [] for page in ("get-started", "in-pictures", "which-tool", "when-not")
}
html_context = {"default_mode": "auto"}

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
# A class is among the settings, which sphinx cannot compare with the last build's.
suppress_warnings = ["config.cache"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Reference
autosummary_generate = True
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
# What scikit-learn and torch say of every estimator and module is said there.
_ELSEWHERE = (
    "BaseEstimator, TransformerMixin, OneToOneFeatureMixin, ClassifierMixin, "
    "MetaEstimatorMixin, Module, tuple"
)
autodoc_default_options = {
    "members": True,
    "inherited-members": _ELSEWHERE,
}
autodoc_mock_imports = [] if importlib.util.find_spec("torch") else ["torch"]
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def _look(*_: Any) -> None:
    """Pictures of the gallery: quiet axes, the colours of :mod:`fairsteer.plotting`."""
    mpl.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(
                color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
            ),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (7.5, 3.4),
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 2,
            "savefig.dpi": 160,
        }
    )


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "within_subsection_order": FileNameSortKey,
    "filename_pattern": "/plot_",
    "reset_modules": ("matplotlib", _look),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "min_reported_time": 1,
    "thumbnail_size": (560, 350),
    "default_thumb_file": None,
    "write_computation_times": False,
}


class _MathML:
    """Formulae as MathML, which browsers set themselves, without any script."""

    @staticmethod
    def inline(self: Any, node: nodes.math) -> None:
        self.body.append(convert(node.astext()))
        raise nodes.SkipNode

    @staticmethod
    def block(self: Any, node: nodes.math_block) -> None:
        self.body.append(
            f'<div class="math">{convert(node.astext(), display="block")}</div>'
        )
        raise nodes.SkipNode


html_math_renderer = "mathml"

#: Pages of the repository that the site has under other names.
_MOVED = {
    "../CHANGELOG.md": "changelog.md",
    "../README.md": "get-started.md",
    "../benchmarks/results/": "measured/",
}


def _links_within_the_site(app: Any, name: str, source: list[str]) -> None:
    """Links out of ``docs``, made to lead to where the site has these pages."""
    text = source[0]
    for old, new in _MOVED.items():
        text = re.sub(rf"\]\({re.escape(old)}", f"]({new}", text)
    source[0] = text


_WITHIN_NUMBERS = (
    r"(?<=\d,) (?=[^\s\]]+\])| (?=[±%])|(?<=±) |(?<=\d) (?=/)|(?<=/) (?=\.?\d)"
)


def _numbers_in_one_piece(app: Any, tree: nodes.document, name: str) -> None:
    """In tables an interval, or a number with its error, stays on one line."""
    for entry in tree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            whole = re.sub(_WITHIN_NUMBERS, "\N{NO-BREAK SPACE}", text)
            text.parent.replace(text, nodes.Text(whole))


def _copy_results(app: Any) -> None:
    """The tables that the benchmarks have written are pages of the site, too."""
    shutil.rmtree(HERE / "measured", ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks" / "results", HERE / "measured")


def _is_said_elsewhere(
    app: Any, what: str, name: str, member: Any, *_: Any
) -> bool | None:
    """Leave out what every estimator has, and fields without words of their own."""
    every = re.fullmatch(r"set_\w+_request|set_output|get_metadata_routing", name)
    wordless = str(getattr(member, "__doc__", "")).startswith("Alias for field number")
    return True if every or wordless else None


def _references_are_no_list(
    app: Any, page: str, template: str, context: dict[str, Any], tree: Any
) -> None:
    """Let no screen reader announce a list, since the entries are no items of one."""
    if "body" in context:
        context["body"] = context["body"].replace(
            'role="list" class="citation-list"', 'class="citation-list"'
        )


def setup(app: Any) -> None:
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_MathML.inline, None),
        block_renderers=(_MathML.block, None),
    )
    app.connect("config-inited", lambda app, config: _copy_results(app))
    app.connect("autodoc-skip-member", _is_said_elsewhere)
    app.connect("doctree-resolved", _numbers_in_one_piece)
    app.connect("html-page-context", _references_are_no_list)
    app.connect("source-read", _links_within_the_site)
