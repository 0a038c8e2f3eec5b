"""One of the two processes that test_processes.py starts; writes what it saw to FOLDER/RANK.pt."""

from __future__ import annotations

import torch
from small_training import Small, Watcher
from two_processes import join_and_run

from kdcompress.errors import KdcompressError
from kdcompress.tasks import CLASSIFICATION
from kdcompress.train import minimiser, trainer
from kdcompress.train.finite import reads_late
from kdcompress.train.scores import HeldOutScores

FROZEN = {
    # Batch norm is held still, since each process normalises its own rows.
    "kd": {"method": "kd"},
    "none": {"method": "none"},
    "dml": {"method": "dml"},
    "dml_sequential": {"method": "dml", "config": {"update": "sequential"}},
    "mcl": {"method": "mcl"},
    "mcl_branches": {"method": "mcl", "config": {"branches": 2, "logit_weight": 1.0}},
    "mcl_memory": {"method": "mcl", "config": {"form": "memory", "negatives": 12}},
    "lmcl": {"method": "lmcl", "config": {"meta_every": 2}},
    "lmcl_memory": {"method": "lmcl", "config": {"form": "memory", "negatives": 6, "meta_every": 2}},
    "byot": {"method": "byot", "config": {"hint_weight": 0.03}},
    "byot_sum": {"method": "byot", "config": {"hint": "active_sum", "hint_weight": 1e-4, "head": "stages"}},
    "one": {"method": "one"},
    "okddip": {"method": "okddip"},
    "okddip_networks": {"method": "okddip", "config": {"form": "networks", "auxiliary": 2}},
    "pcl": {"method": "pcl"},
    "rkd": {"method": "rkd"},
    "pskd": {"method": "pskd"},
    "frskd": {"method": "frskd"},
    "cskd": {"method": "cskd"},
    "ddgsd": {"method": "ddgsd", "config": {"feature_weight": 1.0}},
    "dlb": {"method": "dlb"},
    "spkd_self": {"method": "spkd_self", "config": {"start_share": 0.0}},
    "scd": {"method": "scd", "config": {"start_share": 0.0}},
    "sad": {"method": "sad", "config": {"start_share": 0.0}},
    "zipf": {"method": "zipf"},
    "tfkd": {"method": "tfkd"},
    "snapshot": {"method": "snapshot"},
    "crd": {"method": "crd", "config": {"negatives": 50}},
    "simreg": {"method": "simreg", "config": {"ce_weight": 1.0}},
    "seed": {"method": "seed", "config": {"ce_weight": 1.0, "queue": 24}},
    "sskd": {"method": "sskd", "config": {"tf_ratio": 0.5}},
    "sp": {"method": "sp", "config": {"weight": 100.0}},
    "ab": {"method": "ab", "config": {"initial_share": 0.5}},
    "everything": {
        "method": "kd",
        "train": {"accumulate": 2, "clip_norm": 0.5, "ema": 0.9},
        "optim": {"name": "adamw", "lr": 0.002},
    },
}
LIVE = ("kdcl", "mcl", "lmcl", "one", "okddip", "pcl", "ffl", "mfef", "afd", "byot", "mixskd", "pskd")
"""Methods that two processes train with batch norm as it is."""
DROPS_OUT = {"method": "kd", "student": "torchvision/mobilenet_v3_small", "held_out": 0}


def frozen(name):
    # Three steps an epoch; the last group of two that are accumulated has one.
    arguments = {"held_out": 0, "count": 24, **FROZEN[name]}
    return {**arguments, "float64": True, "train": {"freeze_bn": True, **arguments.get("train", {})}}


def main(folder, processes):
    seen = {}
    trainer.STEPS_BETWEEN_ASKS = 3
    trainer.SECONDS_BETWEEN_ASKS = 1e6  # however slow the machine is, the third step is asked at

    def small(where, **arguments):
        return Small(folder / where, processes=processes, **arguments)

    for name in FROZEN:
        made = small(name, **frozen(name))
        made.run()
        seen[name] = made.tensors()

    made = small("as_it_is", method="dml")
    seen["indices"] = [batch.indices for epoch in range(2) for batch in made.loader.epoch(epoch)]
    outcome = made.run()
    seen["as_it_is"], seen["outcome"] = made.tensors(), outcome

    seen["live"] = {}
    for name in LIVE:
        made = small(f"live_{name}", method=name, train={"epochs": 1})
        made.run()
        seen["live"][name] = made.tensors()

    made = small("averaged", method="dml", train={"ema": 0.5, "epochs": 3})
    seen["averaged"] = made.run()
    seen["averaged_last"] = made.trainer.choice.state_dict()["last"]
    scores = HeldOutScores(CLASSIFICATION, None, processes)
    networks = {"student": (made.student.network, made.student)}
    seen["scores"] = scores(networks, made.trainer.choice._held_out)
    seen["student"] = made.student.network.state_dict()
    seen["rows"] = processes.gather_rows(torch.arange(2.0)[: processes.rank])

    made = small("not_finite")
    losses = made.method.losses
    if processes.rank == 1:
        made.method.losses = lambda batch: {
            name: term / (0 if made.trainer.at.step == 2 else 1) for name, term in losses(batch).items()
        }
    seen["not_finite"] = message(made.run)
    seen["not_finite_step"] = made.trainer.at.step

    # As on a GPU, where a read would wait.
    minimiser.reads_late = lambda device: True
    made = small("late", method="dml")
    made.run()
    seen["late"] = made.tensors()
    made = small("late_not_finite")
    before = made.method.losses
    if processes.rank == 1:
        made.method.losses = lambda batch: {
            name: term / (0 if made.trainer.at.step == 2 else 1) for name, term in before(batch).items()
        }
    seen["late_not_finite"] = message(made.run)
    minimiser.reads_late = reads_late

    # Dropout draws in each process: every generator has to come back.
    unbroken = small("unbroken", **DROPS_OUT)
    seen["first_draw"] = torch.get_rng_state()
    unbroken.run()
    # Only the second process hears the signal.
    watcher = Watcher(7) if processes.rank == 1 else Watcher()
    seen["stopped"] = message(small("stopped", **DROPS_OUT, watcher=watcher).run)
    resumed = small("stopped", **DROPS_OUT)
    torch.rand(5 + processes.rank)
    resumed.run()
    seen["unbroken"], seen["resumed"] = unbroken.tensors(), resumed.tensors()

    seen["turns"] = []
    with processes.first_process_first():
        seen["turns"] = sorted(path.name for path in folder.glob("turn*"))
        (folder / f"turn{processes.rank}").touch()

    torch.save(seen, folder / f"{processes.rank}.pt")
    if processes.rank == 1:
        return  # ends, while the first one waits for it
    seen["left_alone"] = message(lambda: processes.broadcast(1)) or message(processes.barrier)
    torch.save(seen, folder / f"{processes.rank}.pt")


def message(work):
    try:
        work()
    except KdcompressError as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    join_and_run(main)
