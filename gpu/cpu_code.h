/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_code.h - a task's coding, on the thread that calls: what the CPU device's workers do, and others for a GPU.
 */
#ifndef SKVCD_GPU_CPU_CODE_H
#define SKVCD_GPU_CPU_CODE_H

#include "gpu/device.h"

/* s: the task's sequence, or NULL.  Errors of codec_encode() and codec_decode(). */
int cpu_encode(struct codec_workspace *ws, struct device_task *t, struct codec_sequence *s);
int cpu_decode(struct codec_workspace *ws, struct device_task *t, struct codec_sequence *s);
/* The task's block in its region. */
struct codec_view cpu_view(const struct device_task *t);

#endif
