"""Times MONAI's sliding window on a network of ours; run by the Python of the peers' environment.

    PYTHONPATH=PROJECT python peer_monai.py NETWORK.pt IMAGE.npy THREADS MODE RESULT.npy

MODE is `defaults` (fp32, contiguous) or `bf16` (autocast to bfloat16, channels_last_3d). The network is as
its user has it: in evaluation mode, not folded. Prints the seconds of the call as the last line.
"""

import sys
import time

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from medseg_brn.networks.unet3d import UNet3d

WINDOW, OVERLAP = (128, 128, 128), 0.5


def main() -> None:
    """Time one call after a warm-up on one window."""
    saved, image_path, threads, mode, result = sys.argv[1:]
    torch.set_num_threads(int(threads))
    description = torch.load(saved, weights_only=True)
    network = UNet3d(1, description["classes"], **description["options"])
    network.load_state_dict(description["weights"])
    network.eval()
    image = torch.from_numpy(np.load(image_path))[None]
    if mode == "bf16":
        network.to(memory_format=torch.channels_last_3d)
        image = image.to(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "bf16"):
        network(image[:, :, : WINDOW[0], : WINDOW[1], : WINDOW[2]])
        start = time.perf_counter()
        logits = sliding_window_inference(image, WINDOW, 1, network, overlap=OVERLAP, mode="gaussian")
        seconds = time.perf_counter() - start
    np.save(result, logits[0].argmax(0).to(torch.uint8).numpy())
    print(seconds)


if __name__ == "__main__":
    main()
