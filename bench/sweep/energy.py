"""Energy that a GPU has taken, as its driver counts it (NVML); None where it does not."""

import ctypes

import torch

SUCCESS = 0


def joules(device: torch.device) -> float | None:
    """Energy since the driver was loaded, of everything that the GPU did: take differences."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        index = torch.cuda.current_device() if device.index is None else device.index
        # by name: NVML counts GPUs that CUDA_VISIBLE_DEVICES hides, too
        name = f"GPU-{torch.cuda.get_device_properties(index).uuid}".encode()
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        answers = (
            nvml.nvmlInit_v2(),
            nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)),
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)),
        )
    except (OSError, AttributeError):  # no driver, or one without the function
        return None
    return None if any(answer != SUCCESS for answer in answers) else energy.value / 1000.0
