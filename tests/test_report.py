"""The report: what comes from outside stays text, equal input gives equal bytes, what is missing is said, links lead somewhere."""

import dataclasses
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pandas as pd
import pypandoc
import pytest

from xstudy import claims, report
from xstudy.core import DataError, SettingsError

HOSTILE = "<script>alert(1)</script> #show: none $x$ a|b `code` [link](http://x.org) @phang2020english *b* \\frac ~s~ ^u^ {=html} '\"--"
FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="40"><rect width="90" height="30" fill="#888"/></svg>'


class Page(HTMLParser):
    "Text, elements, links and ids of a page."

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.links, self.ids = "", set(), [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.links += [attrs["href"]] if "href" in attrs else []
        assert not any(k.startswith("on") for k in attrs), "no event handlers"

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def made(tmp_path):
    "A folder with its files, and an invented context."
    effects = pd.DataFrame(
        [
            dict(question="rq1", contrast="itt_mean_vs_token_matched", measure=m, estimate=0.01, low=-0.01, high=0.03, p=0.4, mde=0.025)
            | dict(seeds=3, n_languages=2, verdict="withheld", reason="three seeds", run="r-1", source="lab", model="m")
            for m in ("clean", "adv_typo", "drop_adv_typo")
        ]
    )
    accuracy = [
        dict(arm=a, language=c, measure=m, estimate=0.6, low=0.5, high=0.7) for a in ("direct", "PAWS") for c in ("de", "sw", "mean") for m in ("clean", "adv_typo")
    ]
    example = dict(language="de", attack="typo", arm="direct", gold="neutral", before=("Der Hund schläft.", "Er ruht."))
    context = dict(
        title="Invented", profile="lab-quick", source="lab", model="m", date="2026-01-31", run="r-1", commit="abc", machine="two cores", versions={"python": "3.11"},
        command="xstudy run lab-quick", settings={"seeds": 3}, mean_over="two languages", gate_floor=0.433, chance=1 / 3, limits=["Invented."],
        questions=[dict(id="rq1", text="Does it?", contrast="itt_mean_vs_token_matched", measures=["adv_typo"])],
        stages=pd.DataFrame([dict(stage="encoder", seconds=12.0, key="encoder-1")]),
        arms=pd.DataFrame([dict(arm="direct", intermediate="none", tokens=1000, steps=10, dev=float("nan"), manipulation="none")]),
        gate=pd.DataFrame([dict(language=c, clean=0.6, low=0.5, high=0.7, passes=True) for c in ("de", "sw")]),
        accuracy=pd.DataFrame(accuracy), effects=effects, claims=claims.verdicts(effects),
        figures=[dict(path="figures/one.svg", alt="a box", caption="A box.", table="tables/effects.csv")],
        examples=[example | dict(after=("Der Hund schlöft.", "Er ruht."), prediction_before="neutral", prediction_after="entailment")],
        files={k: f"tables/{k}.csv" for k in ("arms", "gate", "accuracy", "effects", "stages")}, runs={"r-1": "runs"},
    )  # fmt: skip
    for name in ("tables", "figures", "runs"):
        (tmp_path / name).mkdir()
    for name, path in context["files"].items():
        context[name].to_csv(tmp_path / path, index=False)
    (tmp_path / "figures/one.svg").write_text(FIGURE)
    return tmp_path, context


def test_links_resolve_and_the_page_is_self_contained(made):
    folder, context = made
    text = report.build_report(folder, context)["html"].read_text(encoding="utf-8")
    page = Page(text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids, link
        elif not re.match(r"https?:|data:", link):
            assert (folder / unquote(link)).exists(), link
    assert {"#claim-C04", "#tbl-main"} <= {f"#{i}" for i in page.ids} and "runs" in page.links and "#tbl-main" in page.links
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r'src="(?!data:)|url\((?!data:)|@import', text)
    assert "Verdict withheld: 3 seeds, five are needed." in page.text and all(f"claim-{c.id}" in page.ids for c in claims.ledger())
    assert not list(folder.glob(".report-*")), "nothing is left behind"


def test_equal_input_gives_equal_bytes(made):
    folder, context = made
    first = {k: p.read_bytes() for k, p in report.build_report(folder, context).items()}
    assert {k: p.read_bytes() for k, p in report.build_report(folder, context).items()} == first
    later = report.build_report(folder, context | dict(date="2026-02-01"))
    assert later["pdf"].read_bytes() != first["pdf"]


TRICKS = [HOSTILE, "1. list", "- list", "# heading", "Table: caption", ": definition", "::: div", "| a | b |", "---", "\\", "a\\", "``` x", "$$", "&amp;"]


@pytest.mark.parametrize("target", ["html", "pdf"])
@pytest.mark.parametrize("around", ["{}", "before {} after", "**{}** and", "x\n\n| a |\n|:--|\n| {} |"])
def test_escape_shows_the_text_itself(around, target):
    source = "\n\n".join(around.format(report.escape(text, target)) for text in TRICKS) + "\n"
    out = Page(pypandoc.convert_text(source, "html", format=report._READER, extra_args=["--wrap=none"]))
    for text in TRICKS:
        assert text in out.text, (around, text)
    assert not out.tags - {"p", "strong", "table", "colgroup", "col", "thead", "tbody", "tr", "th", "td"}, out.tags


def test_hostile_text_everywhere(made):
    folder, context = made
    e = dict(context["examples"][0], before=(HOSTILE, "a"), after=(HOSTILE + " #x $", "<b>"), arm=HOSTILE, gold=HOSTILE, prediction_after=HOSTILE)
    bad = dataclasses.replace(claims.claim("C04"), text=HOSTILE, remark=HOSTILE, completion=HOSTILE, evidence=dict(quote=HOSTILE, place=HOSTILE))
    wild = context | dict(title=HOSTILE, model=HOSTILE, limits=[HOSTILE], examples=[e], machine=HOSTILE, commit=HOSTILE, settings={HOSTILE: HOSTILE}, mean_over=HOSTILE)
    wild |= dict(run=HOSTILE, command=HOSTILE, versions={HOSTILE: HOSTILE}, questions=[dict(context["questions"][0], text=HOSTILE)])
    wild |= dict(arms=context["arms"].assign(arm=HOSTILE, manipulation=HOSTILE), effects=context["effects"].assign(seeds=5, verdict=HOSTILE))
    wild |= dict(claims=[claims.Verdict(bad, "inconclusive", "lab", HOSTILE, (HOSTILE,), ({},))], figures=[dict(context["figures"][0], caption=HOSTILE, alt=HOSTILE)])
    wild |= dict(accuracy=context["accuracy"].replace("direct", HOSTILE), stages=context["stages"].assign(stage=HOSTILE, key=HOSTILE))
    paths = report.build_report(folder, wild)
    page = Page(paths["html"].read_text(encoding="utf-8"))
    assert not {"script", "b"} & page.tags and not any("x.org" in link for link in page.links)
    assert page.text.count("<script>alert(1)</script> #show: none $x$ a|b") >= 15
    assert paths["pdf"].read_bytes()[:5] == b"%PDF-"


def test_text_that_hides_is_shown(made):
    folder, context = made
    text = "turn\u202earound zero\u200bwidth \x07bell नमस्ते 狗 \U0001f600"
    paths = report.build_report(folder, context | dict(limits=[text]))
    page = paths["html"].read_text(encoding="utf-8")
    assert "\u202e" not in page and "‹U+202E›" in page and "‹U+200B›" in page and "नमस्ते 狗" in page
    assert "Devanagari" in report.markdown(report.check_context(folder, context | dict(limits=[text])), "pdf")


def test_a_missing_file_or_entry_is_one_clear_sentence(made):
    folder, context = made
    (folder / "figures/one.svg").unlink()
    with pytest.raises(DataError, match="one.svg: the report shows a figure, and the file is not there"):
        report.build_report(folder, context)
    assert not (folder / "report.html").exists(), "nothing is written"
    (folder / "figures/one.svg").write_text(FIGURE)
    for wrong, says in [
        ({k: v for k, v in context.items() if k != "machine"}, "lacks 'machine'"),
        (context | dict(machin=""), "Did you mean 'machine'"),
        (context | dict(limits="none"), "must be a list"),
        (context | dict(date="today"), "YYYY-MM-DD"),
        (context | dict(files={}), "lacks arms"),
        (context | dict(figures=[dict(context["figures"][0], path="../x.svg")]), "outside the report"),
        (context | dict(gate=context["gate"].drop(columns="low")), "'gate' lacks the column"),
        (context | dict(effects=context["effects"].drop(columns="mde")), "lacks the column"),
    ]:
        with pytest.raises((SettingsError, DataError), match=re.escape(says)) as e:
            report.build_report(folder, wrong)
        assert "\n" not in str(e.value)
    (folder / "figures/one.svg").write_text("no picture")
    with pytest.raises(Exception) as e:
        report.build_report(folder, context)
    assert type(e.value).__name__ == "RunError" and "typst" in str(e.value)


def test_own_bibliography_must_have_what_is_cited(made):
    folder, context = made
    (folder / "few.bib").write_text("@online{other, title = {Other}, year = {2020}}\n")
    with pytest.raises(DataError, match="huang2021improving"):
        report.build_report(folder, context | dict(references=folder / "few.bib"))
