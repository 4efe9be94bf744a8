// What inspectors see: every live actor at first, then what happens. Attached to the actor system only while somebody
// watches, so that nothing is converted for nobody; a viewer that throws is dropped and disturbs no actor.
import type { AnyActorRef, InspectionEvent, Subscription } from 'xstate';
import type { Inspection, InspectionMessage } from '../model/service.ts';
import { actorMessage, eventMessage, snapshotMessage } from './inspect-protocol.ts';

type Viewer = (message: InspectionMessage) => void;

export class InspectHub implements Inspection {
  readonly #root: AnyActorRef;
  readonly #viewers = new Set<Viewer>();
  #subscription: Subscription | null = null;

  constructor(root: AnyActorRef) {
    this.#root = root;
  }

  subscribe(viewer: Viewer): () => void {
    for (const actor of withDescendants(this.#root)) viewer(this.#actorMessage(actor));
    this.#viewers.add(viewer);
    this.#subscription ??= this.#root.system.inspect({ next: (event) => this.#inspected(event) });
    return () => {
      this.#viewers.delete(viewer);
      if (this.#viewers.size > 0) return;
      this.#subscription?.unsubscribe();
      this.#subscription = null;
    };
  }

  #inspected(event: InspectionEvent): void {
    const message = this.#message(event);
    if (!message) return;
    for (const viewer of this.#viewers) {
      try {
        viewer(message);
      } catch {
        this.#viewers.delete(viewer);
      }
    }
  }

  #message(inspected: InspectionEvent): InspectionMessage | null {
    const rootId = this.#root.sessionId;
    // xstate also announces observers' own subscriptions; everything with an actor of ours is an ActorRef
    const actor = inspected.actorRef as AnyActorRef;
    if (inspected.type === '@xstate.actor') return this.#actorMessage(actor);
    if (inspected.type === '@xstate.event') {
      const sourceId = inspected.sourceRef?.sessionId;
      return eventMessage({
        sessionId: actor.sessionId,
        rootId,
        event: inspected.event,
        ...(sourceId === undefined ? {} : { sourceId }),
      });
    }
    if (inspected.type === '@xstate.snapshot') {
      return snapshotMessage({
        sessionId: actor.sessionId,
        rootId,
        event: inspected.event,
        actorSnapshot: inspected.snapshot,
      });
    }
    return null;
  }

  #actorMessage(actor: AnyActorRef): InspectionMessage {
    const parentId = (Reflect.get(actor, '_parent') as AnyActorRef | undefined)?.sessionId;
    const definition = (actor as { logic?: { config?: unknown } }).logic?.config;
    return actorMessage({
      sessionId: actor.sessionId,
      rootId: this.#root.sessionId,
      name: actor.id,
      actorSnapshot: actor.getSnapshot() as unknown, // undefined while the actor is being made
      ...(parentId === undefined ? {} : { parentId }),
      ...(definition === undefined ? {} : { definition }),
    });
  }
}

function* withDescendants(actor: AnyActorRef): Generator<AnyActorRef> {
  yield actor;
  const children = (actor.getSnapshot() as { children?: Record<string, AnyActorRef | undefined> } | undefined)
    ?.children;
  for (const child of Object.values(children ?? {})) if (child) yield* withDescendants(child);
}
