"""Serves a model that `vitprune export --format onnx` wrote, with numpy and onnxruntime alone.

    vitprune export small --format onnx --data ~/images --out web
    python serve_onnx.py web/model.onnx --port 8000
    curl --data-binary @images.npy http://localhost:8000/?k=3

A request's body is a .npy file: uint8 images (N, height, width, channels), or (N, height, width) of one channel, of the
model's own size. The answer is JSON: for every image the k likeliest classes with their probabilities. How images are
normalised, and what the classes are called, stands in the ONNX file itself.
"""

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime

LIMIT = 64 * 2**20  # bytes of a request


class Classifier:
    """An exported model that takes images as they are."""

    def __init__(self, path, threads=1):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["vitprune"])
        self.size = self.about["preprocessing"]["size"]
        self.channels = self.about["preprocessing"]["channels"]

    def prepare(self, images):
        """uint8 (N, H, W, C) or (N, H, W) -> float32 (N, C, H, W), normalised. Raises ValueError for another shape."""
        images = np.asarray(images)
        x = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or x.ndim != 4 or list(x.shape[1:]) != [*self.size, self.channels] or not len(x):
            wanted = f"uint8 (N, {self.size[0]}, {self.size[1]}, {self.channels})"
            raise ValueError(f"images must be {wanted}, but got {images.dtype} {images.shape}; resize them before")
        mean, std = (np.asarray(self.about["preprocessing"][k], np.float32) for k in ("mean", "std"))
        return ((x.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)

    def scores(self, images):
        """Class scores (N, K)."""
        return self.session.run(["scores"], {"images": np.ascontiguousarray(self.prepare(images))})[0]

    def classify(self, images, k=1):
        """For every image the k likeliest classes: [{"class": name, "probability": share}, ...]."""
        scores = self.scores(images)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        names = self.about["classes"] or [str(i) for i in range(scores.shape[1])]
        order = np.argsort(-shares, axis=1)[:, :k]
        return [
            [{"class": names[i], "probability": float(row[i])} for i in best]
            for row, best in zip(shares, order, strict=True)
        ]


def server(model, host, port):
    """An HTTP server around a Classifier: POST a .npy file; GET tells what the model wants."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, model.about)

        def do_POST(self):
            try:
                length = int(self.headers.get("Content-Length", 0))
                if not 0 < length <= LIMIT:
                    raise ValueError(f"a request must have 1 to {LIMIT} bytes, but has {length}")
                k = int(parse_qs(urlsplit(self.path).query).get("k", ["1"])[0])
                if k < 1:
                    raise ValueError(f"k must be at least 1, but is {k}")
                images = np.load(io.BytesIO(self.rfile.read(length)), allow_pickle=False)
                self.answer(200, model.classify(images, k))
            except (ValueError, EOFError) as error:
                self.answer(400, {"error": str(error)})

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer((host, port), Handler)


def main():
    """Serves until it is interrupted."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="the ONNX file")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8000)
    options.add_argument("--threads", type=int, default=1, help="CPU threads of onnxruntime")
    given = options.parse_args()
    with server(Classifier(given.model, given.threads), given.host, given.port) as running:
        print(f"http://{given.host}:{running.server_port}", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
