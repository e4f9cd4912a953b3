/* SPDX-License-Identifier: Apache-2.0 */
/*
 * output.h - what the tools print, and that it got there: a full disk or a closed pipe must not look like an answer.
 */
#ifndef SKVCD_TOOLS_OUTPUT_H
#define SKVCD_TOOLS_OUTPUT_H

#include <stdio.h>

#include <cjson/cJSON.h>

/* As a text and a newline; root is freed.  0, or -ENOMEM after a line on stderr.  Of errors of `out` tells who flushes
 * it. */
int output_json(cJSON *root, FILE *out);

/* All that was printed to stdout is out: 0, or -errno after a line on stderr. */
int output_end(void);

#endif
