// Database passwords and private keys: sealed with AES-256-GCM before they reach SQLite, opened only to connect.
import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { TaskNotes } from '../../db/notes.ts';
import { MigrationError } from '../model/errors.ts';
import type { Endpoint, EndpointSecrets, Role } from '../model/endpoint.ts';
import type { Log } from '../postgres/task-scope.ts';

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** `DTS_SECRET_KEY` as given: 32 bytes in base64. */
export function parseSecretKey(base64: string): Buffer {
  const key = Buffer.from(base64, 'base64');
  if (key.length !== KEY_BYTES || key.toString('base64').replace(/=+$/, '') !== base64.replace(/=+$/, '')) {
    throw new MigrationError('invalid_request', 'DTS_SECRET_KEY: must be 32 bytes in base64', {
      hint: 'make one with: openssl rand -base64 32',
    });
  }
  return key;
}

/** The key file beside the database: read, or made with mode 0600. A warning, because who copies the folder has both. */
export function keyFromFile(path: string, log: Log): Buffer {
  if (existsSync(path)) {
    chmodSync(path, 0o600);
    return parseSecretKey(readFileSync(path, 'utf8').trim());
  }
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const key = randomBytes(KEY_BYTES);
  writeFileSync(path, `${key.toString('base64')}\n`, { mode: 0o600, flag: 'wx' });
  log.warn({ path }, 'DTS_SECRET_KEY is not set: passwords are sealed with a key file beside the database');
  return key;
}

export class SecretVault {
  readonly #key: Buffer;
  readonly #notes: TaskNotes;

  constructor(key: Buffer, notes: TaskNotes) {
    this.#key = key;
    this.#notes = notes;
  }

  /** Tells a repeated request from another one without keeping anything that could be guessed from. */
  fingerprint(value: unknown): string {
    return createHmac('sha256', this.#key).update(JSON.stringify(value)).digest('hex');
  }

  store(taskId: string, role: Role, secrets: EndpointSecrets): void {
    if (Object.keys(secrets).length === 0) return;
    const nonce = randomBytes(NONCE_BYTES);
    const cipher = createCipheriv('aes-256-gcm', this.#key, nonce).setAAD(Buffer.from(`${taskId}/${role}`));
    const sealed = Buffer.concat([cipher.update(JSON.stringify(secrets), 'utf8'), cipher.final()]);
    this.#notes.saveSecret(taskId, role, Buffer.concat([nonce, cipher.getAuthTag(), sealed]));
  }

  /** Seals what another task has of a role for this one. Errors: `secret_unavailable`. */
  copy(from: { readonly taskId: string; readonly role: Role }, taskId: string, role: Role): void {
    this.store(taskId, role, this.#unseal(from.taskId, from.role));
  }

  /** Errors: `secret_unavailable`. */
  async open(taskId: string, role: Role, endpoint: Endpoint): Promise<EndpointSecrets> {
    return { ...this.#unseal(taskId, role), ...(await referencedPassword(endpoint, role)) };
  }

  #unseal(taskId: string, role: Role): EndpointSecrets {
    const sealed = this.#notes.sealedSecret(taskId, role);
    if (!sealed) return {};
    try {
      const decipher = createDecipheriv('aes-256-gcm', this.#key, sealed.subarray(0, NONCE_BYTES))
        .setAAD(Buffer.from(`${taskId}/${role}`))
        .setAuthTag(sealed.subarray(NONCE_BYTES, NONCE_BYTES + TAG_BYTES));
      const opened = Buffer.concat([
        decipher.update(sealed.subarray(NONCE_BYTES + TAG_BYTES)),
        decipher.final(),
      ]);
      return JSON.parse(opened.toString('utf8')) as EndpointSecrets;
    } catch (error) {
      throw new MigrationError('secret_unavailable', `${role}: the stored password cannot be opened`, {
        hint: 'start the service with the DTS_SECRET_KEY (or key file) that it had when the task was created',
        cause: error,
      });
    }
  }
}

/** Passwords that are only referred to are read at every connect, so that a rotated one is taken up. */
export async function referencedPassword(endpoint: Endpoint, role: Role): Promise<EndpointSecrets> {
  const source = endpoint.password;
  if (source.from === 'env') {
    const password = process.env[source.name];
    if (password !== undefined) return { password };
    throw new MigrationError(
      'secret_unavailable',
      `${role}: environment variable ${source.name} is not set`,
      {
        hint: `start the service with ${source.name} in its environment`,
      },
    );
  }
  if (source.from === 'file') {
    try {
      return { password: (await readFile(source.path, 'utf8')).replace(/\r?\n$/, '') };
    } catch (error) {
      throw new MigrationError('secret_unavailable', `${role}: cannot read ${source.path}`, {
        hint: 'password_file is a path on the machine of the service, readable for it',
        cause: error,
      });
    }
  }
  return {};
}
