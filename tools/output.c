/* SPDX-License-Identifier: Apache-2.0 */
/*
 * output.c - printing a tree of JSON, and the end of a program's output.
 */
#include "tools/output.h"

#include <errno.h>
#include <string.h>

int output_json(cJSON *root, FILE *out)
{
	char *text = cJSON_Print(root);

	cJSON_Delete(root);
	if (!text) {
		(void)fprintf(stderr, "%s: no memory for JSON\n", program_invocation_short_name);
		return -ENOMEM;
	}
	(void)fprintf(out, "%s\n", text);
	cJSON_free(text);
	return 0;
}

int output_end(void)
{
	int r = fflush(stdout) ? -errno : ferror(stdout) ? -EIO : 0;

	if (r < 0)
		(void)fprintf(stderr, "%s: standard output: %s\n", program_invocation_short_name,
			      strerror(-r));
	return r;
}
