"""A server in the place of the one that publishes torchvision's weights."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
from contextlib import contextmanager

import torch
from torchvision import models

from kdcompress.networks.build import build

MODEL = "torchvision/shufflenet_v2_x0_5"
NAME = "IMAGENET1K_V1"


class Publisher:
    """What the server offers, and how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.sha256, self.requests = content, hashlib.sha256(content).hexdigest(), 0


@contextmanager
def publisher(patch, *, answers=True):
    """Serves random weights of `MODEL` under the address of the published ones.

    Args:
        patch: A MonkeyPatch.
        answers: False: the server accepts connections and says nothing.
    """
    torch.manual_seed(7)
    file = io.BytesIO()
    torch.save(build(MODEL, num_classes=1000, channels=3, image_size=(32, 32)).state_dict(), file)
    publisher = Publisher(file.getvalue())
    ends = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            publisher.requests += 1
            if not answers:
                ends.wait(30)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(publisher.content)))
            self.end_headers()
            self.wfile.write(publisher.content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/shufflenet-{publisher.sha256[:8]}.pth"
        patch.setattr(models.ShuffleNet_V2_X0_5_Weights, "url", address, raising=False)
        yield publisher
        ends.set()
        server.shutdown()
        thread.join()
