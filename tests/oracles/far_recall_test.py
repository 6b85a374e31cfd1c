"""Things said once, and far from there a question for each: a sparse model whose queries read an eighth of the context answers as well
as the dense one that it came from."""
import json
import os
import random

import numpy as np

from harness import cairn, journal, main, run_file, workspace

CONTEXT, CLASSES, VALUES = 128, 16, 4  # a thing is one of four values of its class
TOPK = CONTEXT // 8
MODEL = {"model.model_type": "llama_dsa", "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_hidden_layers": 2,
         "model.num_attention_heads": 4, "model.num_key_value_heads": 2, "model.max_position_embeddings": CONTEXT,
         "model.index_n_heads": 8, "model.index_head_dim": 16, "model.index_topk": TOPK}


def sequence(draw):
    """Tokens, and where the answers stand: at least 48 positions after what they repeat."""
    row = [t % 8 for t in range(CONTEXT)]
    things = [32 + VALUES * kind + draw.randrange(VALUES) for kind in range(CLASSES)]
    for at, thing in zip(draw.sample(range(40), CLASSES), things):
        row[at] = thing
    answers = []
    for at, kind in zip(range(88, CONTEXT, 2), draw.sample(range(CLASSES), CLASSES)):
        row[at:at + 2] = [16 + kind, things[kind]]
        answers.append(at + 1)
    return row, answers


def answer_loss(folder, run, dense=False):
    """Mean nats of an answer, and the share of answers that have at least half of the probability, on unseen sequences.
    `dense`: by a copy that has no indexer."""
    draw = random.Random(99)
    rows = [sequence(draw) for _ in range(100)]
    ids, out = os.path.join(folder, "ids.jsonl"), os.path.join(folder, "logprobs.jsonl")
    with open(ids, "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row, _ in rows))
    if dense:
        cairn("export", run, "--format", "hf", "--drop-indexer", "--out", os.path.join(folder, "without"))
        run = os.path.join(folder, "without")
    cairn("eval", run, "--ids", ids, "--logprobs", out)
    with open(out) as file:
        logprobs = [json.loads(line) for line in file]
    nats = np.array([-logprobs[i][at - 1] for i, (_, answers) in enumerate(rows) for at in answers])
    return nats.mean(), (nats < np.log(2)).mean()


def train(folder, name, stages):
    shard = os.path.join(folder, "tokens.npy")
    if not os.path.exists(shard):
        draw = random.Random(1)
        np.save(shard, np.array([token for _ in range(20000) for token in sequence(draw)[0]], dtype=np.uint16))
    file = run_file(folder, shard, **{**MODEL, "data.train": [{"shards": shard}], "data.validation_fraction": 0, "data.context": CONTEXT,
                                      "model.initializer_range": 0.1, "optim.lr": 0.004, "optim.schedule.name": "constant",
                                      "optim.schedule.warmup": 20, "optim.schedule.decay": None, "train.batch": 32, "train.micro_batch": 16,
                                      "train.lanes": 2, "train.threads": 2, "checkpoints.every": 0})
    tree = json.load(open(file))
    tree["train"].pop("steps", None)
    tree["stages"] = stages
    with open(file, "w") as out:
        json.dump(tree, out)
    run = os.path.join(folder, name)
    cairn("train", file, "--run", run, "--json")
    return run


DENSE, WARMUP, SPARSE = 500, 100, 300


def test_a_sparse_model_recalls_from_afar():
    with workspace() as folder:
        dense = train(folder, "dense", [{"name": "dense", "steps": DENSE + SPARSE, "indexer": {"mode": "dense"}}])
        sparse = train(folder, "sparse", [{"name": "dense", "steps": DENSE, "indexer": {"mode": "dense"}},
                                          {"name": "warmup", "steps": WARMUP, "train": "indexer", "indexer": {"mode": "warmup", "lr": 0.003}},
                                          {"name": "sparse", "steps": SPARSE, "indexer": {"mode": "sparse", "lr": 0.003}}])
        recall = {line["step"]: line for line in journal(sparse)}[DENSE + WARMUP]["layers"]["index_recall"]
        (of_dense, right_dense), (of_sparse, right_sparse) = answer_loss(folder, dense, dense=True), answer_loss(folder, sparse)
        by_accident, _ = answer_loss(folder, dense)  # the dense model, what its queries read chosen by an indexer as it began
        print(f"      an answer costs {of_dense:.4f} nats dense ({right_dense:.1%} right), {of_sparse:.4f} sparse ({right_sparse:.1%}), "
              f"{by_accident:.2f} sparse with an untrained indexer; by chance {np.log(VALUES):.2f}; recall after the warm-up {recall}")
        assert right_dense > 0.98 and right_sparse > 0.98 and of_sparse < of_dense + 0.02, (of_dense, of_sparse)
        assert by_accident > 0.5, by_accident
        assert min(recall.values()) > 0.9, recall


if __name__ == "__main__":
    main([test_a_sparse_model_recalls_from_afar])
