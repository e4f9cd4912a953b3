# SPDX-License-Identifier: Apache-2.0
GPU_SRCS := \
	gpu/codec/channel.c \
	gpu/codec/checksum.c \
	gpu/codec/container.c \
	gpu/codec/cpu_scalar.c \
	gpu/codec/dispatch.c \
	gpu/codec/fit.c \
	gpu/codec/fit_tables.c \
	gpu/codec/generic.c \
	gpu/codec/geometry.c \
	gpu/codec/layer.c \
	gpu/codec/layer_fit.c \
	gpu/codec/layer_made.c \
	gpu/codec/layer_profile.c \
	gpu/codec/layer_rotary.c \
	gpu/codec/layer_rows.c \
	gpu/codec/model.c \
	gpu/codec/model_draft.c \
	gpu/codec/model_draft_fit.c \
	gpu/codec/model_fit.c \
	gpu/codec/model_fit_sample.c \
	gpu/codec/model_kernels.c \
	gpu/codec/model_math.c \
	gpu/codec/model_matrix.c \
	gpu/codec/model_params.c \
	gpu/codec/model_pass.c \
	gpu/codec/model_profile.c \
	gpu/codec/model_rescale.c \
	gpu/codec/model_solve.c \
	gpu/codec/model_weights.c \
	gpu/codec/predicted.c \
	gpu/codec/product.c \
	gpu/codec/profile.c \
	gpu/codec/residual_code.c \
	gpu/codec/residual_fit.c \
	gpu/codec/residual_scalar.c \
	gpu/codec/sequence.c \
	gpu/cpu_code.c \
	gpu/cpu_device.c \
	gpu/cpu_fit.c \
	gpu/cpu_fit_model.c \
	gpu/cuda_load.c \
	gpu/device_region.c \
	gpu/fault_device.c \
	gpu/model/config.c \
	gpu/model/file.c \
	gpu/model/folder.c \
	gpu/model/safetensors.c \
	gpu/predictor.c \
	gpu/predictor_cpu.c \
	gpu/sim_device.c \
	gpu/sim_import.c \
	gpu/sim_memory.c \
	gpu/sim_task.c \
	gpu/staging.c
GPU_AVX2_SRCS := \
	gpu/codec/cpu_avx2.c \
	gpu/codec/layer_rows_avx2.c \
	gpu/codec/model_avx2.c \
	gpu/codec/product_avx2.c \
	gpu/codec/residual_avx2.c
GPU_AVX512_SRCS := \
	gpu/codec/cpu_avx512.c \
	gpu/codec/cpu_loads_avx512.c \
	gpu/codec/layer_rows_avx512.c \
	gpu/codec/model_avx512.c \
	gpu/codec/product_avx512.c \
	gpu/codec/residual_avx512.c \
	gpu/codec/residual_loads_avx512.c
# The shared object with the CUDA device; not in gpu.a.
CUDA_SRCS := \
	gpu/cuda_batch.c \
	gpu/cuda_device.c \
	gpu/cuda_error.c \
	gpu/cuda_facts.c \
	gpu/cuda_flight.c \
	gpu/cuda_memory.c \
	gpu/cuda_models.c \
	gpu/cuda_predictor.c \
	gpu/cuda_shape.c \
	gpu/cuda_slot.c
CUDA_KERNEL_SRCS := \
	gpu/codec/cuda_codec.cu \
	gpu/codec/cuda_describe.cu \
	gpu/codec/cuda_layer.cu \
	gpu/codec/cuda_layer_describe.cu \
	gpu/codec/cuda_model.cu \
	gpu/codec/cuda_model_code.cu \
	gpu/codec/cuda_model_load.cu
