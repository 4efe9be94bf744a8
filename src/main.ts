#!/usr/bin/env node
// Composition root: parses the command line, runs a command, ends the process. The only place that calls process.exit.
import { Command } from 'commander';
import { packageVersion, serve } from './cli/serve.ts';
import { verify } from './cli/verify.ts';
import { parseConfig, secretSettings, settings } from './config.ts';
import { asMigrationError } from './model/errors.ts';

const version = packageVersion();
const program = new Command('dts')
  .description(
    'Moves PostgreSQL tables and databases to another PostgreSQL while the source keeps taking writes',
  )
  .version(version)
  .showHelpAfterError();

const serveCommand = program
  .command('serve')
  .description('run the service (HTTP API, inspector) until SIGTERM');
for (const { flag, placeholder, variable, fallback, help } of settings) {
  serveCommand.option(
    `${flag} ${placeholder}`,
    `${help} (environment: ${variable}; default: ${fallback || 'none'})`,
  );
}
serveCommand.addHelpText(
  'after',
  `\nEnvironment only:\n${secretSettings.map(({ variable, help }) => `  ${variable.padEnd(16)} ${help}`).join('\n')}\n`,
);
serveCommand.action(async (flags: Record<string, string | undefined>) => {
  const given: Record<string, string | undefined> = { ...process.env };
  for (const { flag, variable } of settings) {
    const name = flag.slice(2).replace(/-(\w)/g, (_, letter: string) => letter.toUpperCase());
    if (flags[name] !== undefined) given[variable] = flags[name];
  }
  process.exit(await serve(parseConfig(given), version, process.env['DTS_FAILPOINT']));
});

program
  .command('verify <certificate>')
  .description(
    're-check a certificate against both servers; exit code 0: it holds, 1: it does not, 2: not checked',
  )
  .option('--source <url>', 'postgresql:// URL of the source (environment: DTS_SOURCE_URL)')
  .option('--target <url>', 'postgresql:// URL of the target (environment: DTS_TARGET_URL)')
  .addHelpText(
    'after',
    '\nPasswords: in the URL of the environment, or DTS_SOURCE_PASSWORD, DTS_TARGET_PASSWORD\n',
  )
  .action(async (certificate: string, flags: { source?: string; target?: string }) => {
    const write = (line: string): void => void process.stdout.write(`${line}\n`);
    process.exit(await verify(certificate, flags, process.env, write));
  });

program
  .command('demo')
  .description('migrate a shop between two embedded servers, with two kills on the way, and compare them')
  .action(async () => {
    // loaded on demand: the demo's servers are development dependencies
    const { runDemo } = await import('./cli/demo/demo.ts');
    process.exit(await runDemo([]));
  });

program.parseAsync().catch((error: unknown) => {
  const { code, message, hint } = asMigrationError(error);
  process.stderr.write(`dts: ${message} (${code})\n${hint === undefined ? '' : `     ${hint}\n`}`);
  process.exit(1);
});
