"""The page: whole and self-contained."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from nnicompress.report.html import render_html, write_html
from tests.report.sample import PHASES, make_report, quantized_report

VOID = {"meta", "br"}


class Balance(HTMLParser):
    """Every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_html(make_report({"accuracy": {"min": 0.9}, "macs_ratio": {"max": 0.4}}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert re.findall(r"(?:src|href)=(?!\"#)|url\((?!#)|@import|<script", page) == []
    assert set(re.findall(r"https?://[^\"' ]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 3
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(ids)) == len(ids) and set(re.findall(r"(?:href=\"|url\()#([^\")]*)", page)) <= set(ids)
    for text in ("2.50 times as fast", "Files to deploy".lower(), "✓ holds", "✗ missed", "19.0–21.0", "1.0e-15"):
        assert text in page or text in page.lower()


def test_what_a_user_wrote_is_escaped() -> None:
    page = render_html(make_report())
    assert "A &lt;small&gt; network &amp; its report" in page and "<small> network" not in page
    assert "its width &lt;is&gt; fixed" in page and "<is>" not in page


def test_a_page_without_pictures_is_a_page() -> None:
    page = render_html(make_report(phases=PHASES[:1], artifacts=(), layers=(), curves=(), proof=None))
    assert "<svg" not in page and "Not compressed" in page


def test_matplotlib_is_not_imported_before_a_page_is_written() -> None:
    code = "import sys, nnicompress.report.html; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_up_is_worse_the_page_says_so() -> None:
    assert "left is cheaper, up is better" in render_html(make_report())
    page = render_html(make_report(metric="MeanSquaredError", mode="min"))
    assert "left is cheaper, down is better" in page and "MeanSquaredError against cost" in page


def test_a_quantized_model_has_its_way_to_integers() -> None:
    page = render_html(quantized_report())
    assert page.index("From float to integers") < page.index("<b>96.5 %</b><span>model.onnx in onnxruntime</span>")
    assert "3 Softmax in float: no integer kernel." in page and "&lt;its&gt; output" in page
    assert "bytes of the weights" in page and "of the multiply-accumulates" not in page
    assert "From float to integers" not in render_html(make_report())
