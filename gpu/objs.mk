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
	gpu/codec/profile.c \
	gpu/cpu_device.c \
	gpu/cuda_load.c \
	gpu/device_region.c \
	gpu/fault_device.c \
	gpu/sim_device.c \
	gpu/sim_import.c \
	gpu/sim_memory.c \
	gpu/sim_task.c
GPU_AVX2_SRCS :=
GPU_AVX512_SRCS :=
