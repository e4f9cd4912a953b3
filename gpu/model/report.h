/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report.h - one line that says what is wrong and where, for the tools' readers of files.
 *
 * Owns nothing: the text goes to the caller's buffer, and the caller decides whether to print it.
 */
#ifndef SKVCD_GPU_MODEL_REPORT_H
#define SKVCD_GPU_MODEL_REPORT_H

#include <assert.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#define REPORT_BYTES 512u /* enough for a path and a sentence */

/* Where the line goes, and what the thing that is wrong is called in it. */
struct report {
	const char *subject; /* borrowed: a path, usually */
	char *err;	     /* borrowed; may be NULL: then nobody wants it */
	size_t err_bytes;
};

/* Writes "subject: text", cut to the buffer; returns @error so that a caller can return the call. */
__attribute__((format(printf, 3, 4), unused)) static int report_fail(const struct report *r,
								     int error, const char *format,
								     ...)
{
	va_list args;
	int used;

	assert(error < 0);
	if (!r->err || !r->err_bytes)
		return error;
	used = snprintf(r->err, r->err_bytes, "%s: ", r->subject);
	if (used < 0 || (size_t)used >= r->err_bytes)
		return error;
	va_start(args, format);
	(void)vsnprintf(r->err + used, r->err_bytes - (size_t)used, format, args);
	va_end(args);
	/* Names come from files: they may not break the promise of one line. */
	for (char *p = r->err; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	return error;
}

#endif
