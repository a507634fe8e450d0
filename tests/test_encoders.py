"""Encoders of every family, from folders and through the real client from a small hub on this machine."""

import io
import json
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from test_hub import Hub
from transformers import AutoModel, BertConfig, DebertaV2Config, RemBertConfig, XLMRobertaConfig, XLMRobertaModel, XLMRobertaXLConfig

from xstudy.core import ModelError, rng
from xstudy.encoders import load_encoder, save_encoder, train_tokenizer

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=66, pad_token_id=1)
WORDS = [a + b for a in ("ka", "mo", "ti", "su", "re", "la") for b in ("na", "po", "de", "gi", "vu", "ro", "ба", "क")]


def sentences(n=400):
    g = rng("hub test")
    return [" ".join(WORDS[i] for i in g.integers(0, len(WORDS), 8)) for _ in range(n)]


class Models(Hub):
    "The same hub, for models: their addresses have no first folder."

    repos = {}

    def do_GET(self):
        if not self.path.startswith("/api/"):
            self.path = "/models" + self.path
        super().do_GET()

    do_HEAD = do_POST = do_GET


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    "A randomly initialised XLM-R with a sentencepiece model trained here, in the files that the hub's has."
    folder = tmp_path_factory.mktemp("xlmr")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences()), model_writer=out, vocab_size=90, model_type="unigram", hard_vocab_limit=False, minloglevel=2)
    size = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()).get_piece_size() + 2  # <pad> and <mask> come to it
    torch.manual_seed(0)
    XLMRobertaModel(XLMRobertaConfig(vocab_size=size, type_vocab_size=1, **SMALL)).save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").write_bytes(out.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512}))
    return folder


@pytest.fixture(scope="module")
def ask(repository, tmp_path_factory):
    "Loads encoders by hub id in a process of its own; returns what it printed."
    files = {p.name: p.read_bytes() for p in repository.iterdir()}
    cut = files | {"model.safetensors": files["model.safetensors"][:5000]}
    Models.repos = {"tests/xlmr": files, "tests/cut": cut, "tests/pickle": {k: v for k, v in files.items() if k != "model.safetensors"} | {"pytorch_model.bin": b"x"}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = os.environ | dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path_factory.mktemp("home")), HF_HUB_DISABLE_XET="1",
                            HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="0", HF_HUB_ETAG_TIMEOUT="5")  # fmt: skip

    def run(name):
        code = """
import json, sys
from xstudy.core import ModelError
from xstudy.encoders import load_encoder
try:
    m, t = load_encoder(sys.argv[1])
    weights = float(sum(p.double().abs().sum() for p in m.parameters()))
    print(json.dumps(dict(weights=weights, ids=t("kana mopo", "tide").input_ids, type=m.config.model_type, limit=t.model_max_length, rows=m.get_input_embeddings().num_embeddings, pieces=len(t))))
except ModelError as e:
    print(json.dumps(str(e)))
"""
        r = subprocess.run([sys.executable, "-c", code, name], env=env, capture_output=True, text=True, timeout=300)
        assert r.returncode == 0, r.stderr[-2000:]
        return json.loads(r.stdout.splitlines()[-1])

    yield run
    server.shutdown()


def test_a_hub_id_loads_through_the_real_client(ask, repository):
    got = ask("tests/xlmr")
    assert isinstance(got, dict), got
    weights = load_file(repository / "model.safetensors")
    assert got["type"] == "xlm-roberta" and got["limit"] == 64 and got["pieces"] <= got["rows"]
    assert got["weights"] == pytest.approx(sum(v.double().abs().sum().item() for k, v in weights.items() if "pooler" not in k and v.is_floating_point()), rel=1e-9)
    ids = got["ids"]
    assert ids[0] == 0 and ids[-1] == 2 and [i for i, x in enumerate(ids) if x == 2][0] + 1 == [i for i, x in enumerate(ids) if x == 2][1]  # <s> a </s></s> b </s>
    assert any(p.endswith("sentencepiece.bpe.model") for p in Hub.asked) and not any(p.endswith(".bin") for p in Hub.asked)


def test_what_is_wrong_on_the_hub_is_one_sentence(ask):
    cut, pickled, none = ask("tests/cut"), ask("tests/pickle"), ask("tests/nothing")
    assert all(isinstance(x, str) and "\n" not in x for x in (cut, pickled, none)), (cut, pickled, none)
    assert "tests/cut" in cut and "tests/pickle" in pickled and "tests/nothing" in none


@pytest.mark.parametrize("family", ["xlm-r", "xl", "mbert", "mdeberta", "rembert"])
def test_every_family_loads_from_a_folder(family, tmp_path):
    tok = train_tokenizer({"en": sentences()}, 90)
    more = dict(vocab_size=len(tok) + 3) | SMALL
    config = {
        "xlm-r": lambda: XLMRobertaConfig(type_vocab_size=1, **more),
        "xl": lambda: XLMRobertaXLConfig(type_vocab_size=1, **more),
        "mbert": lambda: BertConfig(**more),
        "mdeberta": lambda: DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True, **more),
        "rembert": lambda: RemBertConfig(input_embedding_size=16, output_embedding_size=16, **more),
    }[family]()
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    save_encoder(model, tok, tmp_path / family)
    again, tokenizer = load_encoder(tmp_path / family)
    x = tokenizer("kana mopo", return_tensors="pt")
    with torch.no_grad():
        a, b = (m(input_ids=x["input_ids"], attention_mask=x["attention_mask"]).last_hidden_state for m in (model, again.eval()))
    assert torch.allclose(a, b, atol=1e-5) and tokenizer.model_max_length == 64


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    big = train_tokenizer({"en": sentences()}, 90)
    save_encoder(XLMRobertaModel(XLMRobertaConfig(vocab_size=20, type_vocab_size=1, **SMALL)), big, tmp_path / "odd")
    with pytest.raises(ModelError, match="not of one model"):
        load_encoder(tmp_path / "odd")


def test_weights_of_another_shape_are_refused(tmp_path):
    tok = train_tokenizer({"en": sentences()}, 90)
    save_encoder(XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tok), type_vocab_size=1, **SMALL)), tok, tmp_path / "odd")
    facts = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps(facts | {"hidden_size": 48}))
    with pytest.raises(ModelError, match="another shape"):
        load_encoder(tmp_path / "odd")


def test_a_tokenizer_that_pads_every_text_is_told_not_to(tmp_path):
    tok = train_tokenizer({"en": sentences()}, 90)
    save_encoder(XLMRobertaModel(XLMRobertaConfig(vocab_size=len(tok), type_vocab_size=1, **SMALL)), tok, tmp_path / "padded")
    facts = json.loads((tmp_path / "padded/tokenizer.json").read_text())
    facts |= dict(
        padding=dict(strategy={"Fixed": 40}, direction="Right", pad_to_multiple_of=None, pad_id=1, pad_type_id=0, pad_token="<pad>"),
        truncation=dict(max_length=5, strategy="LongestFirst", stride=0, direction="Right"),
    )
    (tmp_path / "padded/tokenizer.json").write_text(json.dumps(facts))
    ids = load_encoder(tmp_path / "padded")[1].backend_tokenizer.encode("kana mopo tide", add_special_tokens=False).ids
    assert 1 not in ids and ids == tok("kana mopo tide", add_special_tokens=False).input_ids
