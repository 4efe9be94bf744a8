// Both sides of a task. The manager owns one for each live task and closes it when the task ends, whatever ended it.
import type { Endpoint, EndpointSecrets, Role } from '../model/endpoint.ts';
import { Side, type SideSettings } from './connections.ts';

/** Both sides of a task. */
export class TaskConnections {
  readonly source: Side;
  readonly target: Side;

  constructor(
    taskId: string,
    endpoints: Record<Role, Endpoint>,
    secrets: (role: Role) => Promise<EndpointSecrets>,
    targetSettings: SideSettings = {},
  ) {
    this.source = new Side(taskId, 'source', endpoints.source, () => secrets('source'));
    this.target = new Side(taskId, 'target', endpoints.target, () => secrets('target'), targetSettings);
  }

  get connectionCount(): number {
    return this.source.connectionCount + this.target.connectionCount;
  }

  async closeAll(): Promise<Error[]> {
    return (await Promise.all([this.source.close(), this.target.close()])).flat();
  }
}
