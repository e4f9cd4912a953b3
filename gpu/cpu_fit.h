/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_fit.h - what the CPU device's background threads do to make profiles.  Any thread; one task at a time
 * per fit.
 */
#ifndef SKVCD_GPU_CPU_FIT_H
#define SKVCD_GPU_CPU_FIT_H

#include "gpu/device.h"

/* DEVICE_FIT and DEVICE_FIT_LAYER.  0 or negative errno. */
int cpu_fit(struct codec_workspace *ws, struct device_task *t);
int cpu_fit_layer(struct codec_workspace *ws, struct device_task *t);
int cpu_fit_model(struct device_task *t); /* DEVICE_FIT_MODEL; -EINVAL: not this model's geometry */

#endif
