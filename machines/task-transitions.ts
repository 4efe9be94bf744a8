// Transitions that several regions of the chart of task.ts share: where an error leads, and the wait until a time.
import type { TaskContext } from './task-context.ts';

export const fail = { target: '#task.failing', actions: 'recordError' } as const;

/** By what the error means: failed, tried again later, or left to a person. */
export const onError = [
  { guard: 'errorFails', ...fail },
  { guard: 'errorRetries', target: '#task.retrying', actions: ['recordError', 'scheduleRetry'] },
  { target: '#task.paused', actions: 'recordError' },
] as const;

export const deadline = {
  src: 'deadline',
  input: ({ context }: { context: TaskContext }) => ({ at: context.deadlineAt }),
} as const;
